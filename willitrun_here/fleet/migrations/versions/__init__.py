"""Migrations of the fleet database, run by Alembic."""
