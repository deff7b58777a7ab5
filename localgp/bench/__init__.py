"""Speed and memory, paired in one run: encoder, decoder, training step, trained runs, and other libraries beside them.

`harness` makes runs take turns; every other module turns one kind of run into rows; `goals` judges the rows.
"""
