"""The host app: a crawler of sites, whose crawls are runs that can be cancelled."""
