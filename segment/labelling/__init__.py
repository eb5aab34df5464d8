"""Pre-annotations for labelling tools: detections in the formats of Label Studio and CVAT."""
