"""The one path from photos to labels, and `mltr predict`, which takes it for millions.

`predictor` goes from images to labels on a bundle or an `exported` network. `tagging` finds the
photos (`inputs`), remembers what is done (`journal`) and writes it (`results`, `sidecars`, `xmp`);
`cluster` and `on_ray` move the network elsewhere. `embed` takes the same path to `features`, which
`similar` searches in a `feature_table`.
"""
