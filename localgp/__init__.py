"""Context-driven dynamic pruning for speech foundation models.

Importing this package is cheap: ESPnet, SpeechBrain and Lightning are imported
where they are used.
"""

__version__ = "0.1.0"
