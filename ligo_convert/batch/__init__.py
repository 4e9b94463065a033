"""Many conversions from one manifest, in processes of this machine or on a Ray cluster."""
