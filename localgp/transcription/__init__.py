"""Recordings of any length to text, segments and subtitles."""
