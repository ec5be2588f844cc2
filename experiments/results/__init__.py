"""What is kept of trainings: records, statistics, report, figures."""
