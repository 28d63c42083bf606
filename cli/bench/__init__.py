"""`hyimage bench`: measurements that live in the product."""
