"""Policies: what is trained. The only modules that know diffusers."""
