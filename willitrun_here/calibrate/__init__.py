"""Measuring this machine once and keeping what was found, so that later answers rest on it."""
