"""Many runs as one study: what the papers' tables and figures are made from."""
