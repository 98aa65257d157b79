"""Borders: random programs in which features meet, interrupted anywhere, judged by a model.

`program` says what a program is, as data; `generate` chooses some, so that all pairs of features
occur; `build` makes shoal's objects of one; `model` says what it must come to; `play` lives its
lives, with all that goes wrong in them; `judge` compares, and `tolerance` counts failures;
`coverage` counts pairs; `shrink` makes a failing program small. By hand: ``python -m tests.borders
--programs 1000 --seed 7 --backend trio --store sqlite``.
"""
