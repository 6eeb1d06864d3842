"""Files and folders of any content: atomic writes, locks, downloads, caches, encodings.

All files are written with `writing` and fetched with `download`. File formats belong to the
folders that read them.
"""
