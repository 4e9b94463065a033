"""The promises of the package, and for each the guards that keep it: the text of a guard, a text that breaks it, the tests that notice.

`docs/promises.md` is generated from this table. `scripts/mutate_guards.py` breaks every guard in a copy of the repository and requires its
tests to fail. `tests/laws/test_promises.py` requires every guard's text to stand in its file exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Guard:
    """A place in the code that keeps a promise.

    Attributes:
        keeps: what it refuses or ensures, as a phrase.
        file: path below `ligo_convert`.
        text: the code that keeps the promise; it stands in the file exactly once.
        broken: the code in its place with which the promise is broken.
        tests: ids of tests, at least one of which fails then.
    """

    keeps: str
    file: str
    text: str
    broken: str
    tests: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Promise:
    """A promise to the users.

    Attributes:
        number: `P1` and so on.
        sentence: the promise.
        others: what other tools do, with the version that was tried or the source of the statement.
        guards: the places that keep it.
    """

    number: str
    sentence: str
    others: str
    guards: tuple[Guard, ...]


PROMISES: tuple[Promise, ...] = (
    Promise(
        number="P1",
        sentence="The output directory is absent or complete, never partial.",
        others="mergekit 0.1.5 finishes a valid-looking model of 7 tensors after an exception at tensor 7 of 10. transformers 5.23, "
        "killed while it overwrites a model, leaves a directory that loads a mixture of old and new weights.",
        guards=(
            Guard(
                keeps="an output appears by one rename",
                file="io/staging.py",
                text='do("rename_new", self.path, self.out, passing=(FileExistsError,))',
                broken='do("mkdir", self.out), [do("rename", p, self.out / p.name) for p in sorted(self.path.iterdir())]',
                tests=("tests/io/test_staging.py::test_effects_come_in_the_order_that_survives_power_loss",),
            ),
            Guard(
                keeps="a file has its name only when it is whole",
                file="io/files.py",
                text="        self.written = 0\n",
                broken="        self.written, temporary = 0, target\n",
                tests=("tests/io/test_staging.py::test_a_file_shows_only_once_it_is_whole",),
            ),
            Guard(
                keeps="a writer with missing tensors does not close",
                file="checkpoints/writer.py",
                text="raise AssertionError(f\"{len(missing)} tensors were never put: {', '.join(missing[:3])}\")",
                broken="pass",
                tests=("tests/checkpoints/test_writer.py::test_a_writer_with_tensors_missing_does_not_close",),
            ),
        ),
    ),
    Promise(
        number="P2",
        sentence="An output survives a power loss after exit code 0.",
        others="safetensors 0.8 renames without fsync; transformers does the same. In a model of power loss over two shards and a "
        "manifest, 31 of 127 states had a manifest and bad data; with fsync of files alone, as in PyTorch DCP, 3 of 36; with ours 0 of 23.",
        guards=(
            Guard(
                keeps="a file is synced before it gets its name",
                file="io/files.py",
                text='            do("fsync", self._target, self._descriptor)\n',
                broken="",
                tests=("tests/io/test_staging.py::test_effects_come_in_the_order_that_survives_power_loss",),
            ),
            Guard(
                keeps="the names in a directory are synced",
                file="io/files.py",
                text="        self._release()\n        sync_directory(self._target.parent)\n",
                broken="        self._release()\n",
                tests=("tests/io/test_staging.py::test_effects_come_in_the_order_that_survives_power_loss",),
            ),
            Guard(
                keeps="files that a library wrote are synced",
                file="io/staging.py",
                text="                sync_file(path)\n",
                broken="                pass\n",
                tests=("tests/io/test_staging.py::test_files_that_others_wrote_into_the_staging_directory_are_synced",),
            ),
            Guard(
                keeps="a short write is noticed",
                file="io/files.py",
                text="if os.fstat(self._descriptor).st_size != self.written:",
                broken="if False:",
                tests=("tests/io/test_staging.py::test_a_write_that_lies_about_its_size_is_noticed",),
            ),
            Guard(
                keeps="the rename of an output is synced",
                file="io/staging.py",
                text="        sync_directory(self.out.parent)\n        clear_leftovers(self.out)\n",
                broken="        clear_leftovers(self.out)\n",
                tests=("tests/laws/test_power_loss.py::test_an_output_is_absent_or_whole_and_stays_after_the_end",),
            ),
        ),
    ),
    Promise(
        number="P3",
        sentence="Nothing that exists is overwritten: an output path that is taken is refused before any work.",
        others="transformers 5.23, saving shards over a single file, leaves a directory that loads the old file. "
        "`os.rename` replaces an empty directory in silence.",
        guards=(
            Guard(
                keeps="a directory that is not empty is refused",
                file="io/files.py",
                text="            if next(out.iterdir(), None) is None:\n                return\n",
                broken="            return\n",
                tests=("tests/io/test_staging.py::test_whatever_is_there_is_refused_before_anything_is_made",),
            ),
            Guard(
                keeps="the last rename replaces nothing",
                file="io/files.py",
                text="working_directory, no_replace = -100, 1",
                broken="working_directory, no_replace = -100, 0",
                tests=("tests/io/test_files.py::test_the_last_rename_replaces_nothing",),
            ),
            Guard(
                keeps="a stranger's staging directory is left alone",
                file="io/staging.py",
                text="                if error.errno in (errno.ENOTDIR, errno.ELOOP):  # a file, or a link\n",
                broken="                if False:\n",
                tests=("tests/io/test_staging.py::test_a_stranger_in_the_staging_place_is_left_alone",),
            ),
            Guard(
                keeps="a permanent refusal leaves no staged work in the way",
                file="io/staging.py",
                text="                self.discard()\n        self.close()\n",
                broken="                pass\n        self.close()\n",
                tests=("tests/conversion/test_configs.py::test_a_mended_recipe_follows_a_refusal_that_came_late",),
            ),
        ),
    ),
    Promise(
        number="P4",
        sentence="One process writes an output. A second one exits with code 6 within a second.",
        others="Of two mergekit 0.1.5 runs into one directory, one exits with 0 and the model is a mixture of both.",
        guards=(
            Guard(
                keeps="the lock on the staging directory",
                file="io/files.py",
                text="                raise OutputLocked(path) from None\n",
                broken="                pass\n",
                tests=(
                    "tests/io/test_staging.py::test_a_second_run_is_turned_away_at_once_and_a_killed_one_holds_nothing",
                ),
            ),
            Guard(
                keeps="the run's own mark, read before the commit, where locks do not work",
                file="io/staging.py",
                text='if (self.work / "run").read_bytes() != self._run.encode():',
                broken="if False:",
                tests=("tests/io/test_staging.py::test_without_locks_the_run_that_was_taken_over_does_not_commit",),
            ),
        ),
    ),
    Promise(
        number="P5",
        sentence="A run that is stopped at any moment and run again gives the bytes of an uninterrupted run.",
        others="mergekit and transformers start again from nothing. huggingface_hub 2.4 keeps nothing of a call that failed.",
        guards=(
            Guard(
                keeps="a staged file has the digest of the journal",
                file="io/staging.py",
                text="                    if found in journal.get(name, ()):\n",
                broken="                    if True:\n",
                tests=("tests/checkpoints/test_writer.py::test_a_damaged_shard_is_written_again",),
            ),
            Guard(
                keeps="a finished shard belongs to this plan",
                file="checkpoints/writer.py",
                text="if os.fstat(file.fileno()).st_size == shard.nbytes and file.read(len(shard.header)) == shard.header:",
                broken="if True:",
                tests=(
                    "tests/checkpoints/test_writer.py::"
                    "test_a_file_that_agrees_with_the_journal_but_not_with_the_plan_is_written_again",
                ),
            ),
            Guard(
                keeps="a small file of the state has the digest that it states",
                file="io/sealed.py",
                text='            if digest != sha256_of({"kind": kind, "value": value}):\n',
                broken="            if False:\n",
                tests=("tests/laws/test_fuzz_readers.py::test_sealed_files",),
            ),
            Guard(
                keeps="a training state has the digest that it states",
                file="training/state.py",
                text='    if metadata.get("sha256") != _digest(arrays, text, owner):\n',
                broken="    if False:\n",
                tests=("tests/laws/test_fuzz_readers.py::test_training_states",),
            ),
            Guard(
                keeps="an entry of the cache has the kind and key that it is used for",
                file="io/cache.py",
                text='            case {"kind": self._kind, "key": self._key, "files": dict(files)}:\n',
                broken='            case {"files": dict(files)}:\n',
                tests=("tests/io/test_cache.py::test_an_entry_under_the_name_of_another_is_discarded",),
            ),
            Guard(
                keeps="a file from the cache has the digest of its entry",
                file="io/staging.py",
                text="        if expected not in (None, digest):\n",
                broken="        if False:\n",
                tests=("tests/io/test_staging.py::test_a_file_with_other_bytes_than_expected_gets_no_name",),
            ),
            Guard(
                keeps="weight files of another plan are removed",
                file="checkpoints/writer.py",
                text="                self._staging.remove(name)\n",
                broken="                pass\n",
                tests=("tests/checkpoints/test_writer.py::test_weight_files_of_another_plan_do_not_stay",),
            ),
            Guard(
                keeps="a record of a batch is that of the entry it is used for",
                file="io/leases.py",
                text='                case {"name": str(found), "record": dict(record)} if found == name:\n',
                broken='                case {"record": dict(record)}:\n',
                tests=("tests/io/test_leases.py::test_a_record_under_the_name_of_another_is_discarded",),
            ),
        ),
    ),
    Promise(
        number="P6",
        sentence="The same source, recipe, versions and kind of processor give the same bytes with any number of threads, cores and jobs.",
        others="torch's sums, least squares and singular values differ between 1, 2 and 4 threads.",
        guards=(
            Guard(
                keeps="a tensor grows with one thread",
                file="growth/stream.py",
                text="        with compute_threads(1):\n",
                broken="        if True:\n",
                tests=("tests/laws/test_threads.py::test_dense_maps_grow_the_same_bytes_with_any_number_of_threads",),
            ),
            Guard(
                keeps="a fit computes with the threads of its recipe",
                file="conversion/learn.py",
                text="        with compute_threads(plan.threads):\n",
                broken="        if True:\n",
                tests=("tests/laws/test_threads.py::test_a_trained_source_and_a_fit_are_the_same_bytes_in_any_job",),
            ),
            Guard(
                keeps="the training of a source computes with the threads of its recipe",
                file="conversion/pretrain_source.py",
                text="            with compute_threads(plan.threads):\n",
                broken="            if True:\n",
                tests=("tests/laws/test_threads.py::test_a_trained_source_and_a_fit_are_the_same_bytes_in_any_job",),
            ),
            Guard(
                keeps="a comparison computes with the threads of its recipe",
                file="comparison/worker.py",
                text="        with compute_threads(self.experiment.settings.threads):\n",
                broken="        if True:\n",
                tests=("tests/laws/test_threads.py::test_a_run_of_a_comparison_has_the_threads_of_its_recipe",),
            ),
            Guard(
                keeps="an environment that withholds threads is refused",
                file="environment.py",
                text="    if withheld is not None:\n",
                broken="    if False:\n",
                tests=("tests/laws/test_threads.py::test_an_environment_that_withholds_threads_is_refused",),
            ),
        ),
    ),
    Promise(
        number="P7",
        sentence="Every source byte in use is hashed, compared with the digest that the Hub has for it, and compared again at the end.",
        others="huggingface_hub 2.4 compares sizes: one flipped bit is accepted in its cache and in a local directory (#3643, #2364).",
        guards=(
            Guard(
                keeps="a tensor that is read twice has the same bytes",
                file="checkpoints/reader.py",
                text="        if before != crc32:\n",
                broken="        if False:\n",
                tests=("tests/checkpoints/test_reader.py::test_a_tensor_overwritten_in_place_is_found",),
            ),
            Guard(
                keeps="the files are those of the digest at the end",
                file="checkpoints/reader.py",
                text="            if sha256 != digested.sha256:\n",
                broken="            if False:\n",
                tests=(
                    "tests/checkpoints/test_reader.py::test_an_overwrite_after_the_last_read_is_found_at_the_end",
                    "tests/checkpoints/test_reader.py::test_a_replaced_file_is_found_at_the_end",
                ),
            ),
            Guard(
                keeps="a run ends with that comparison",
                file="conversion/write.py",
                text="        source.recheck()\n",
                broken="",
                tests=("tests/conversion/test_convert.py::test_a_source_that_changes_while_it_is_converted",),
            ),
            Guard(
                keeps="a blob of the Hub's cache has the digest that names it",
                file="checkpoints/digests.py",
                text="    if expected is not None and expected not in (sha256, blob):\n",
                broken="    if False:\n",
                tests=("tests/checkpoints/test_reader.py::test_a_damaged_blob_of_the_cache_is_found_by_its_name",),
            ),
            Guard(
                keeps="a trained source is read back as it was staged",
                file="conversion/pretrain_source.py",
                text='    _require_written(digests, {name: staging.digest(f"{TRAINED_SOURCE}/{name}") for name in digests}, directory)\n',
                broken="",
                tests=(
                    "tests/conversion/test_pretrain_source.py::test_a_bit_lost_between_writing_and_reading_ends_the_run_and_the_next_one_trains_again",
                ),
            ),
            Guard(
                keeps="the weights are those that config.json names",
                file="checkpoints/opening.py",
                text="    check_named_weights(stored_config, index, where=where)\n",
                broken="",
                tests=("tests/checkpoints/test_reader.py::test_another_weight_file_that_the_config_names_is_refused",),
            ),
        ),
    ),
    Promise(
        number="P8",
        sentence="`verify --source` derives every tensor again from source and operator; a changed bit gives exit code 7.",
        others="No other tool is known to derive its output again.",
        guards=(
            Guard(
                keeps="no file lies in an output that no run writes",
                file="outputs/listing.py",
                text="        if name not in known and not is_own(name, made_by) and not carried:\n",
                broken="        if False:\n",
                tests=("tests/outputs/test_listing.py::test_a_stray_file_is_refused_unlisted_and_listed",),
            ),
            Guard(
                keeps="carried files are those of the source",
                file="outputs/listing.py",
                text="        if digests.get(name) == expected:\n",
                broken="        if True:\n",
                tests=("tests/outputs/test_listing.py::test_carried_files_are_derived_again",),
            ),
            Guard(
                keeps="a derived tensor has the bytes of the output",
                file="outputs/verify.py",
                text='                if memoryview(data).cast("B") == new.read(name):\n',
                broken="                if True:\n",
                tests=("tests/conversion/test_convert.py::test_deriving_again_finds_what_digests_cannot",),
            ),
            Guard(
                keeps="a grown optimizer state has the content that source and operator give",
                file="outputs/derived_state.py",
                text="            if one != two and (exact() or not close(one, two, spec)):\n",
                broken="            if False:\n",
                tests=("tests/conversion/test_optimizer_state.py::test_a_grown_state_is_derived_again",),
            ),
            Guard(
                keeps="the source is the one that was recorded",
                file="outputs/verify.py",
                text="            if digests.get(name) != expected:\n",
                broken="            if False:\n",
                tests=("tests/conversion/test_convert.py::test_verify_with_another_source",),
            ),
            Guard(
                keeps="an output lists what every output has",
                file="outputs/listing.py",
                text="    if missing:\n",
                broken="    if False:\n",
                tests=("tests/outputs/test_listing.py::test_what_every_output_has_is_missed_though_the_sums_agree",),
            ),
        ),
    ),
    Promise(
        number="P9",
        sentence="No code of an input runs: no pickle outside a sandbox, no remote code, no Hub kernel, no template.",
        others="CVE-2026-4372 and CVE-2026-5241: config.json ran code in transformers despite `trust_remote_code=False`. "
        "CVE-2025-32434: a pickle ran code in `torch.load(weights_only=True)`.",
        guards=(
            Guard(
                keeps="a config enters transformers through an allow-list",
                file="training/library_config.py",
                text="    return {key: value for key, value in config.items() if key in allowed}\n",
                broken="    return dict(config)\n",
                tests=(
                    "tests/conversion/test_configs.py::test_no_source_chooses_code",
                    "tests/conversion/test_configs.py::test_keys_that_change_the_form_of_a_result_are_carried_and_not_handed_on",
                ),
            ),
            Guard(
                keeps="the library gets a copy of a config",
                file="training/library_config.py",
                text="**copy.deepcopy(dict(data))",
                broken="**dict(data)",
                tests=("tests/conversion/test_configs.py::test_the_planned_config_is_written_by_run_and_apply",),
            ),
            Guard(
                keeps="a pickle is read by a process without system calls for network, processes and signals",
                file="importing/sandbox.py",
                text="    _restrict_calls()\n\n\n",
                broken="\n\n",
                tests=("tests/importing/test_sandbox.py::test_a_confined_process_reads_its_file_and_nothing_else",),
            ),
            Guard(
                keeps="that process opens one file, and none for writing",
                file="importing/sandbox.py",
                text="    _restrict_files(list(descriptors), [folder for folder in directories if folder.is_dir()])\n",
                broken="",
                tests=("tests/importing/test_sandbox.py::test_a_confined_process_reads_its_file_and_nothing_else",),
            ),
            Guard(
                keeps="that process confines itself before it opens the file",
                file="importing/pickle_child.py",
                text="        _close_the_door(request)\n",
                broken="",
                tests=("tests/importing/test_import.py::test_the_process_has_no_secrets_and_no_rights",),
            ),
            Guard(
                keeps="a pickle builds plain data only",
                file="importing/pickle_child.py",
                text='return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)',
                broken='return torch.load(path, map_location="cpu", weights_only=False, mmap=zipped)',
                tests=("tests/importing/test_import.py::test_a_file_that_is_not_plain_weights_is_refused",),
            ),
            Guard(
                keeps="keys of a config that name code are dropped",
                file="checkpoints/opening.py",
                text="without_code(strict_json(small_files.read(CONFIG), label=where), label=where)",
                broken="(strict_json(small_files.read(CONFIG), label=where), [])",
                tests=(
                    "tests/conversion/test_configs.py::test_no_source_chooses_code",
                    "tests/checkpoints/test_reader.py::test_a_key_that_names_code_is_dropped_with_a_warning",
                ),
            ),
            Guard(
                keeps="a recipe names no code",
                file="recipes/errors.py",
                text="            if chooses_code(key):\n",
                broken="            if False:\n",
                tests=("tests/conversion/test_configs.py::test_a_recipe_chooses_no_code",),
            ),
            Guard(
                keeps="the command line turns kernels of the Hub off",
                file="cli/main.py",
                text='    os.environ["USE_HUB_KERNELS"] = "0"\n',
                broken="",
                tests=("tests/laws/test_library_calls.py::test_the_command_line_turns_kernels_from_the_hub_off",),
            ),
            Guard(
                keeps="an operator brings no key that names code into a config",
                file="growth/operator_file.py",
                text='without_code(cast("Mapping[str, object]", data[name]), label=f"{label}: {name}")[0]',
                broken='cast("Mapping[str, object]", data[name])',
                tests=("tests/laws/test_fuzz_readers.py::test_an_operator_does_not_bring_code_into_a_config",),
            ),
        ),
    ),
    Promise(
        number="P10",
        sentence="No path outside the source and its cache is read, and none outside the output is written.",
        others="transformers 5.23 loads a `weight_map` entry with `../` or an absolute path (transformers#46097, #47176).",
        guards=(
            Guard(
                keeps="links may not leave the source directory",
                file="checkpoints/files.py",
                text="    if not any(real.is_relative_to(folder) for folder in inside):\n",
                broken="    if False:\n",
                tests=("tests/checkpoints/test_reader.py::test_links_may_not_leave_the_directory",),
            ),
            Guard(
                keeps="an index names plain files beside it",
                file="checkpoints/headers.py",
                text='if not isinstance(file, str) or not _SHARD_NAME.fullmatch(file) or ".." in file:',
                broken="if not isinstance(file, str):",
                tests=("tests/checkpoints/test_headers.py::test_an_index_entry_must_be_a_plain_file_name",),
            ),
            Guard(
                keeps="a FIFO or device is not opened",
                file="checkpoints/files.py",
                text="    if not stat.S_ISREG(os.fstat(fd).st_mode):\n",
                broken="    if False:\n",
                tests=("tests/checkpoints/test_reader.py::test_special_files_are_refused_without_waiting",),
            ),
            Guard(
                keeps="no file is carried through a link out of the source",
                file="checkpoints/model_files.py",
                text="    if not any(real.is_relative_to(folder) for folder in inside):\n",
                broken="    if False:\n",
                tests=(
                    "tests/checkpoints/test_model_files.py::test_links_and_special_files_are_left_behind_and_never_opened",
                ),
            ),
        ),
    ),
    Promise(
        number="P11",
        sentence="Bad input is refused within seconds and a bounded memory, by the name of file and tensor, with a stable exit code.",
        others="safetensors 0.8 opens a 99.9 MB header in 1.4 GB of memory, takes the last of two tensors of one name, and names no file. "
        "mergekit and transformers accept NaN, extra tensors and missing ones.",
        guards=(
            Guard(
                keeps="no value of a sharded checkpoint is left as it was found in memory",
                file="importing/sharded.py",
                text="            if isinstance(entry, metadata.TensorStorageMetadata) and not _is_whole(entry):\n",
                broken="            if False:\n",
                tests=("tests/importing/test_import.py::test_plain_shards_and_such_as_are_refused",),
            ),
            Guard(
                keeps="the cap on a header",
                file="checkpoints/headers.py",
                text="if 2 <= length <= MAX_HEADER and length + 8 <= file_size and begins_right:",
                broken="if 2 <= length and length + 8 <= file_size and begins_right:",
                tests=("tests/checkpoints/test_headers.py::test_a_header_bomb_is_refused_before_it_is_read",),
            ),
            Guard(
                keeps="shape and bytes agree",
                file="checkpoints/headers.py",
                text="    if offsets[1] - offsets[0] != spec.nbytes:\n",
                broken="    if False:\n",
                tests=("tests/checkpoints/test_headers.py::test_a_bad_file_is_refused_by_name",),
            ),
            Guard(
                keeps="the product of a shape fits 64 bits",
                file="checkpoints/headers.py",
                text="    if math.prod(filter(None, shape)) * DTYPE_BYTES[dtype] >= 1 << 63:\n",
                broken="    if False:\n",
                tests=("tests/checkpoints/test_headers.py::test_a_bad_file_is_refused_by_name",),
            ),
            Guard(
                keeps="layers and classes are counted before they are listed",
                file="families/schema.py",
                text="        self._check_limits(config, sizes)\n",
                broken="",
                tests=("tests/laws/test_size_bombs.py::test_layers_are_counted_before_they_are_named",),
            ),
            Guard(
                keeps="index and shards agree",
                file="checkpoints/layout.py",
                text="        if name not in tensors or tensors[name].file.name != shard:\n",
                broken="        if False:\n",
                tests=("tests/checkpoints/test_reader.py::test_an_index_and_its_shards_must_agree",),
            ),
            Guard(
                keeps="a large file beside the weights is left behind",
                file="checkpoints/model_files.py",
                text="        if size > kind.limit:\n",
                broken="        if False:\n",
                tests=("tests/checkpoints/test_model_files.py::test_a_large_file_is_left_behind",),
            ),
            Guard(
                keeps="float weights that a config calls quantised are refused",
                file="families/inventory.py",
                text="    _refuse_quantised(config, label)\n",
                broken="",
                tests=("tests/families/test_schema.py::test_a_quantised_checkpoint_is_called_so",),
            ),
            Guard(
                keeps="parted entries of a crafted operator are checked",
                file="growth/operator_file.py",
                text="    _check_parted(operator, family, new, label=label)\n",
                broken="",
                tests=("tests/growth/test_twins.py::test_crafted_parted_entries_are_refused",),
            ),
            Guard(
                keeps="every field of a crafted operator is checked",
                file="growth/operator_file.py",
                text="        _check_fields(data, label=label)\n",
                broken="",
                tests=("tests/laws/test_fuzz_readers.py::test_operators",),
            ),
            Guard(
                keeps="a message is a few lines long",
                file="errors.py",
                text='    return printable(text if len(text) <= _LINE else f"{text[:_LINE]}...")\n',
                broken="    return printable(text)\n",
                tests=("tests/test_errors.py::test_an_error_is_a_few_lines_whatever_it_repeats",),
            ),
            Guard(
                keeps="brackets of a JSON file are counted before it is parsed",
                file="io/strict_json.py",
                text="    if brackets > JSON_BRACKETS.most:\n",
                broken="    if False:\n",
                tests=("tests/laws/test_size_bombs.py::test_brackets_of_a_json_file_are_counted_before_it_is_parsed",),
            ),
            Guard(
                keeps="an image is measured before it is decoded",
                file="data/images.py",
                text="                    if math.prod(sides) > PIXELS.most:\n",
                broken="                    if False:\n",
                tests=("tests/data/test_data_bombs.py::test_an_image_is_refused_before_it_is_decoded",),
            ),
            Guard(
                keeps="a tokenizer that multiplies text is refused",
                file="data/tokenizers.py",
                text='{"tokenizer.json": check_pipeline, "added_tokens.json": check_added}',
                broken='{"added_tokens.json": check_added}',
                tests=("tests/data/test_data_bombs.py::test_a_tokenizer_that_multiplies_text_or_time_is_refused",),
            ),
            Guard(
                keeps="a glob visits a bounded number of entries",
                file="io/globs.py",
                text="            if visits.count > VISITS.most:\n",
                broken="            if False:\n",
                tests=("tests/data/test_data_bombs.py::test_a_glob_counts_what_it_visits",),
            ),
        ),
    ),
    Promise(
        number="P12",
        sentence="Errors of recipe, shapes, disk and permissions come before a fit and before weights are downloaded.",
        others="mergekit reports such errors after its downloads (mergekit#527).",
        guards=(
            Guard(
                keeps="the room on the disk is checked first",
                file="io/files.py",
                text="    if free < nbytes:\n",
                broken="    if False:\n",
                tests=("tests/cli/test_main.py::test_no_room_is_said_before_any_work",),
            ),
            Guard(
                keeps="a place where nothing can be made is found first",
                file="io/files.py",
                text="    with contextlib.suppress(FileExistsError):\n"
                '        do("mkdir", probe, passing=(FileExistsError,))\n'
                "    with contextlib.suppress(FileNotFoundError):\n"
                '        do("rmdir", probe, passing=(FileNotFoundError,))\n',
                broken="",
                tests=("tests/io/test_files.py::test_a_read_only_disk_is_told_at_once",),
            ),
            Guard(
                keeps="the room for carried files is counted",
                file="conversion/plan.py",
                text="shards.nbytes + SIDE_FILE_BYTES + beside)",
                broken="shards.nbytes + SIDE_FILE_BYTES)",
                tests=("tests/outputs/test_carried.py::test_the_room_for_carried_files_is_asked_for_before_any_work",),
            ),
            Guard(
                keeps="a plan refuses values of a source's config that are of the wrong kind",
                file="families/schema.py",
                text="        wrong = self.wrong_value(config)\n",
                broken="        wrong = None\n",
                tests=("tests/conversion/test_configs.py::test_a_value_of_the_wrong_kind_is_refused_by_the_plan",),
            ),
            Guard(
                keeps="what the library refuses is refused before staging",
                file="conversion/convert.py",
                text="        check_plan(plan, source)\n",
                broken="        pass\n",
                tests=(
                    "tests/conversion/test_configs.py::test_what_the_library_refuses_is_refused_before_any_staging",
                ),
            ),
        ),
    ),
    Promise(
        number="P13",
        sentence="No token, account, host name, local path or environment variable gets into an output, a log or a card.",
        others="mergekit 0.1.5 copies the recipe, local paths included, beside the model. rich 15 shows local variables in tracebacks.",
        guards=(
            Guard(
                keeps="private strings stop a text that will be shared",
                file="outputs/privacy.py",
                text="        if any(re.search(pattern, reading) for reading in readings):\n",
                broken="        if False:\n",
                tests=("tests/outputs/test_provenance.py::test_canaries_stop_the_statement",),
            ),
            Guard(
                keeps="tokens of the Hub stop it",
                file="outputs/privacy.py",
                text="    if any(map(_HUB_TOKEN.search, readings)):\n",
                broken="    if False:\n",
                tests=(
                    "tests/outputs/test_provenance.py::test_canaries_stop_the_statement",
                    "tests/outputs/test_provenance.py::test_a_secret_in_any_part_of_a_record_is_found",
                ),
            ),
            Guard(
                keeps="a message shows no password of a recipe",
                file="outputs/privacy.py",
                text='    return "a local checkpoint" if private and not of_hub else label\n',
                broken="    return label\n",
                tests=(
                    "tests/outputs/test_card.py::test_a_private_folder_name_is_not_told",
                    "tests/outputs/test_provenance.py::test_a_directory_named_after_its_owner_is_not_told",
                ),
            ),
            Guard(
                keeps="a local file with a path or secret of this machine is not carried",
                file="outputs/carried.py",
                text="        return PRIVATE_TEXT\n",
                broken='        return ""\n',
                tests=("tests/outputs/test_carried.py::test_a_file_with_a_path_of_this_machine_is_left_behind",),
            ),
            Guard(
                keeps="an error in the state of a batch names no place",
                file="batch/job.py",
                text='"why": without_places(str(error))',
                broken='"why": str(error)',
                tests=("tests/batch/test_batch_privacy.py::test_nothing_private_is_in_the_state_or_the_report",),
            ),
        ),
    ),
    Promise(
        number="P14",
        sentence="Nothing untrusted reaches a terminal or a model card unescaped.",
        others="rich 15 passes ESC and C1 characters through `Text` and `escape`, and raises MarkupError for the name `[/]`.",
        guards=(
            Guard(
                keeps="control and bidirectional characters are shown as escapes",
                file="errors.py",
                text='        if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")\n',
                broken="        if True\n",
                tests=("tests/checkpoints/test_headers.py::test_names_cannot_steer_a_terminal",),
            ),
            Guard(
                keeps="foreign text is a code span in a card",
                file="outputs/markdown.py",
                text="    if not text or not harmless or len(text) > LONGEST:\n        return code(text)\n",
                broken="    if not text:\n        return code(text)\n",
                tests=("tests/outputs/test_card.py::test_foreign_text_is_shown_and_does_nothing",),
            ),
        ),
    ),
    Promise(
        number="P15",
        sentence="The peak of the memory stays within the printed plan and 15 %, and a run that needs more than there is does not start.",
        others="mergekit#54: the process is killed without a message.",
        guards=(
            Guard(
                keeps="a fit that does not fit is refused before any work",
                file="conversion/plan.py",
                text="        if memory > installed:\n",
                broken="        if False:\n",
                tests=("tests/conversion/test_convert.py::test_memory_is_asked_for_before_anything_is_done",),
            ),
            Guard(
                keeps="the reported peak is that of this program",
                file="environment.py",
                text='            if line.startswith("VmHWM:"):\n',
                broken="            if False:\n",
                tests=("tests/test_environment.py::test_the_peak_of_a_program_is_not_that_of_its_parent",),
            ),
        ),
    ),
    Promise(
        number="P16",
        sentence="NaN and infinite values in a source or a result give exit code 3; `source.allow_nonfinite` lets them through, recorded.",
        others="transformers 5.23 and mergekit 0.1.5 accept both.",
        guards=(
            Guard(
                keeps="a source with such values is refused",
                file="conversion/source_checks.py",
                text="            if bad:\n",
                broken="            if False:\n",
                tests=("tests/conversion/test_convert.py::test_a_source_with_nonfinite_values",),
            ),
            Guard(
                keeps="a grown tensor with such values is not written",
                file="conversion/write.py",
                text="            if bad:\n",
                broken="            if False:\n",
                tests=("tests/conversion/test_convert.py::test_a_dtype_too_narrow_for_the_values",),
            ),
        ),
    ),
    Promise(
        number="P17",
        sentence="Exit code 0 only when the work is finished and has been read back and verified.",
        others="PyTorch DCP with four threads and failing writers returns from save without an error, and the load fails (pytorch#191391). "
        "safetensors and mergekit never read back what they wrote.",
        guards=(
            Guard(
                keeps="written weights are hashed from the disk",
                file="conversion/write.py",
                text="    check_digests(staging.path, weights)\n",
                broken="",
                tests=(
                    "tests/conversion/test_write_guards.py::test_weights_that_change_on_disk_after_writing_are_found",
                ),
            ),
            Guard(
                keeps="what was computed loads in the library with every key set empty",
                file="conversion/write.py",
                text='            checks["loaded"] = check_loads(staging.path, job.family, streams=streams)\n',
                broken='            checks["loaded"] = {"class": ""}\n',
                tests=(
                    "tests/conversion/test_write_guards.py::test_a_directory_that_the_library_does_not_load_is_found",
                ),
            ),
            Guard(
                keeps="a growth that is exact on paper and not in the measurement ends with exit code 7",
                file="training/preservation.py",
                text='    if planned == "exact" and found != "exact":\n',
                broken="    if False:\n",
                tests=("tests/conversion/test_certificate.py::test_growth_that_is_exact_on_paper_only_is_refused",),
            ),
            Guard(
                keeps="every small file of an output is read back before the commit",
                file="outputs/side_files.py",
                text="    check_digests(staging.path, {name: digest for name, digest in digests.items() if name not in weights})\n",
                broken="    pass\n",
                tests=(
                    "tests/laws/test_damaged_state.py::test_a_bit_that_is_lost_before_the_commit_is_not_vouched_for",
                ),
            ),
            Guard(
                keeps="a comparison that changed is not reported",
                file="comparison/study.py",
                text="            _require_unchanged(before, out / study.record, noun=study.noun)\n",
                broken="            pass\n",
                tests=("tests/comparison/test_compare.py::test_a_figure_that_changed_is_not_reported",),
            ),
            Guard(
                keeps="a result that cannot be printed is no bug and loses no work",
                file="cli/streams.py",
                text="            except OSError as error:\n                self.failure = error\n",
                broken="            except ZeroDivisionError as error:\n                self.failure = OSError(str(error))\n",
                tests=("tests/cli/test_streams.py::test_a_result_that_cannot_be_printed_is_no_bug",),
            ),
        ),
    ),
    Promise(
        number="P18",
        sentence="`publish` uploads what SHA256SUMS lists and nothing else, visible in one step, under a licence, privately by default.",
        others="huggingface_hub 2.4 follows links, leaves out only `.git` and its own cache, checks sizes instead of digests, "
        "and its `upload_folder` can make several commits.",
        guards=(
            Guard(
                keeps="a directory is verified before it is sent",
                file="outputs/bundle.py",
                text="    report = verify(directory, progress=progress)\n",
                broken='    report = {"family": "gpt2"}\n',
                tests=(
                    "tests/outputs/test_publish.py::test_a_flipped_bit_is_not_sent",
                    "tests/outputs/test_publish.py::test_a_file_that_nothing_vouches_for_is_not_sent",
                ),
            ),
            Guard(
                keeps="files that nobody vouches for are not deleted unasked",
                file="outputs/hub_destination.py",
                text="        foreign = repo.foreign_files(head, files)\n        if foreign:\n",
                broken="        foreign = repo.foreign_files(head, files)\n        if False:\n",
                tests=("tests/outputs/test_publish.py::test_what_nobody_vouches_for_is_not_taken_away_unasked",),
            ),
            Guard(
                keeps="the Hub's copy is compared before main moves",
                file="outputs/hub_destination.py",
                text="                repo.require_match(bundle, staged, revision=staging, visible_as=None)\n",
                broken="",
                tests=("tests/outputs/test_publish.py::test_what_the_hub_stored_wrongly_never_gets_to_main",),
            ),
        ),
    ),
    Promise(
        number="P19",
        sentence="One bad entry of a batch harms no other; the summary names it and the exit code is its own.",
        others="A for loop in a shell stops at the first error or hides it. timm's `bulk_runner.py` collects errors in a CSV file.",
        guards=(
            Guard(
                keeps="any exception is the failure of one entry",
                file="batch/scheduler.py",
                text="        except Exception as error:  # noqa: BLE001  a bug too must not stop the other entries\n",
                broken="        except KeyboardInterrupt as error:\n",
                tests=(
                    "tests/batch/test_scheduler.py::test_a_bug_in_planning_or_starting_fails_one_entry",
                    "tests/batch/test_scheduler.py::test_an_entry_that_its_plan_refuses_fails_before_any_entry_starts",
                ),
            ),
        ),
    ),
    Promise(
        number="P20",
        sentence="A verdict says what is true: exact needs the mathematics of the method and the measurement of this model.",
        others="No other tool is known to state before a run what growth preserves. LEMON's code prints a largest difference after it.",
        guards=(
            Guard(
                keeps="a method that is near by mathematics is never certified exact",
                file="growth/verdict.py",
                text='    return measured if planned == "exact" else worst("near", measured)\n',
                broken="    return measured\n",
                tests=("tests/conversion/test_certificate.py::test_exact_needs_the_mathematics_and_the_measurement",),
            ),
            Guard(
                keeps="a source whose outputs show nothing gets no verdict",
                file="training/preservation.py",
                text="        if unmeasured is not None:\n",
                broken="        if False:\n",
                tests=("tests/conversion/test_certificate.py::test_a_source_that_shows_nothing_gets_no_certificate",),
            ),
            Guard(
                keeps="rounding in float32 condemns no exact growth",
                file="training/preservation.py",
                text="        measured, dtype = {**measured, **again()}, torch.float64\n",
                broken="        pass\n",
                tests=("tests/conversion/test_certificate.py::test_rounding_in_float32_condemns_no_exact_growth",),
            ),
            Guard(
                keeps="a model in memory is the one that its config describes",
                file="in_memory.py",
                text="    check_given(model, old, dtype=dtype)\n",
                broken="",
                tests=(
                    "tests/training/test_given_model.py::test_a_model_that_its_config_does_not_describe_is_refused",
                ),
            ),
            Guard(
                keeps="a model remembers nothing between two measurements",
                file="training/functional_model.py",
                text="        with stateless(self.module):\n",
                broken="        if True:\n",
                tests=("tests/training/test_given_model.py::test_a_model_of_the_library_remembers_no_sequence",),
            ),
        ),
    ),
    Promise(
        number="P21",
        sentence="New layers that start silent can use their whole width, and a plan counts the entries that training cannot use.",
        others="Copies in a new layer of zeros stay equal for ever (net2net.torch#3, LLaMA-Pro#10).",
        guards=(
            Guard(
                keeps="inner rows of silent layers are parted in a stream",
                file="growth/apply.py",
                text="        grown = self.with_parted(row, grown, layer)\n",
                broken="",
                tests=("tests/growth/test_twins.py::test_learning_and_streaming_part_the_same",),
            ),
            Guard(
                keeps="they are parted in a fit, too",
                file="growth/apply.py",
                text="        if self._parts(row):\n",
                broken="        if False:\n",
                tests=("tests/growth/test_twins.py::test_learning_and_streaming_part_the_same",),
            ),
        ),
    ),
)
