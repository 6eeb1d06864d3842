"""Files and folders, whatever is in them: written whole or not at all, locked, fetched, cached.

`writing` is the one way to write a file, `download` the one way to fetch one. What a file means
belongs to the room that reads it.
"""
