"""The Kombu transports. Read in this order: base, channel, envelope, leases, embedded."""
