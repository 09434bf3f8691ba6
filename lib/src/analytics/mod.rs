//! Figures over events, from ClickHouse.
