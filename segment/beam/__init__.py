"""Segment a bucket on an Apache Beam runner (https://beam.apache.org): Dataflow, Flink, Prism, or this machine.

`source.py` defines the photos of a run, `worker.py` is the service of a worker process, `steps.py` lists and segments,
`datasets.py` writes datasets, and `pipeline.py` puts the steps together. Reading, segmenting and writing one photo is
the same code as for a bucket event (segment/bucket/objects.py), and the datasets are written as for a folder
(segment/dataset).
"""
