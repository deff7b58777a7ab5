"""Speed and memory, paired in one run: encoder, decoder, training step, trained runs, and other libraries beside them.

`harness` makes runs take turns; `rows` is what all rows look like; `goals` judges them; every other module makes some.
"""
