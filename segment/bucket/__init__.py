"""Photos in buckets and folders: events, single objects, whole buckets, and the stores they are read from."""
