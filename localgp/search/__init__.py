"""Beam search over many utterances, with CTC scores and the rules of time symbols."""
