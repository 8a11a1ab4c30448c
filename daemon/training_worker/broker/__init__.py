"""The broker's side: names, connection, topology, and what a job's ownership stands on: lock, lease and ledger."""
