"""Tools for development: a Cloud Storage of one process, and a bucket to develop against."""
