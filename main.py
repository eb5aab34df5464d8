"""The source file of functions-framework and `gcloud functions deploy`: the function targets of segment/main.py."""

from segment.main import segment_http, segment_object

__all__ = ["segment_http", "segment_object"]
