"""`mltr predict`: labels for photos, from one to millions.

`predict` is the command. `journal` remembers what is done, `results` and `sidecars` (with `xmp`)
write, `progress` tells how far it is.
"""
