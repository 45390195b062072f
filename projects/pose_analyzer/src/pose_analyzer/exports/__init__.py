"""Files of sessions for other programs: tables (CSV, Parquet) and markers (TRC, C3D)."""
