-- Totals by the hour or the day are few rows: a minute after they came they are merged into the rows that there are,
-- so that a figure reads no more than one row of a group.
ALTER TABLE request_totals ${on_cluster} MODIFY SETTING min_age_to_force_merge_seconds = 60;
ALTER TABLE daily_active_users ${on_cluster} MODIFY SETTING min_age_to_force_merge_seconds = 60;
ALTER TABLE chat_statistics ${on_cluster} MODIFY SETTING min_age_to_force_merge_seconds = 60;
ALTER TABLE chat_metrics_hourly ${on_cluster} MODIFY SETTING min_age_to_force_merge_seconds = 60;
ALTER TABLE provider_usage ${on_cluster} MODIFY SETTING min_age_to_force_merge_seconds = 60;
ALTER TABLE revenue_analytics ${on_cluster} MODIFY SETTING min_age_to_force_merge_seconds = 60;
ALTER TABLE mrr_metrics ${on_cluster} MODIFY SETTING min_age_to_force_merge_seconds = 60;
