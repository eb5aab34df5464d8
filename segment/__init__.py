"""Low-memory instance segmentation."""
