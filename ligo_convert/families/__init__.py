"""Which tensors an architecture has, as data: notation, schema, config flattening, FLOPs."""
