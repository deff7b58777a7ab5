"""SpeechPrune (arXiv 2412.12009): training-free token pruning for speech language models, and SPIRAL.

Learnt frame pruning (the rest of this package) decides inside the encoder, layer by layer. SpeechPrune decides
once, between the projector and the language model, without training: phase 1 keeps the audio tokens that are
most similar to the question (`localgp.speechprune.similarity`), phase 2 those that a binarised first-layer
attention looks at most (`localgp.gates.binarised`).

    waveform -> audio tower -> projector -> N audio tokens, 25 per second
                                               | phase 1: N -> 750 (30 s)
                                               | phase 2: 750 -> (1 - rate) * 750
                          question tokens -> language model -> answer

`python -m localgp.speechprune` runs it; `docs/speechprune.md` lists every choice made where the paper is silent.
"""
