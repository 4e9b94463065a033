"""Files that survive a crash: atomic writes, staging, locks, the result cache, strict JSON and YAML."""
