"""Decode packed brushes with Label Studio's codec, and encode them again, into an npz file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from label_studio_sdk.converter.brush import decode_rle, encode_rle

found = {}
for index, packed in enumerate(json.loads(Path(sys.argv[1]).read_text())):
    values = decode_rle(packed)
    found[f"values{index}"] = values
    found[f"packed{index}"] = np.array(encode_rle(values), np.uint8)
np.savez(sys.argv[2], **found)
