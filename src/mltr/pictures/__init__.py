"""Photos and figures for people to look at.

`gallery` lays out photos with their labels, as one picture or an HTML page, and writes figures;
`fonts` finds a font for each letter.
"""
