"""Folders of photos in, files per photo and datasets out."""
