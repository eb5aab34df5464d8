"""Development tools: emulators of Cloud Storage and Pub/Sub, a local bucket, and generators of committed files."""
