"""Detections as files: COCO JSON with RLE or polygons, the overlay, a map of instance ids, cut-outs."""
