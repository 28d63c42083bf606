"""Measurements that live in the product (`hyimage bench`)."""
