"""The real services tests run against, as processes of this machine: Apache Kafka and PostgreSQL."""
