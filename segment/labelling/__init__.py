"""Pre-annotations for labelling tools: what was found in a photo, in Label Studio's terms and in CVAT's."""
