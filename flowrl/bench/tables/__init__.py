"""The tables, one per file: from what is finished to a report."""
