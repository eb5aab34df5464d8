"""detectron2 config + checkpoint -> one self-describing ONNX file. Offline only: serving never imports this."""
