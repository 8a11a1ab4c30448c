"""The broker's side: names, connection, topology, and the sessions that a job's ownership depends on."""
