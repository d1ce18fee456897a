"""Judges: vision-language models that answer questions about pictures, one kind per file."""
