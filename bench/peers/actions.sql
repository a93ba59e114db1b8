\set resident random(1, 1000000)
BEGIN;
INSERT INTO pgbench_entries (stream, version, state) VALUES ('res_' || :resident || '-' || :client_id, nextval('pgbench_versions'), '{"resident":"res_3drzmk2nddr7ibtia4h3","source":"szt","record_id":"record-731-0123456789","behaviour":"bus","quantity":"1","unit":"trip","occurred_at":"2025-06-15T04:00:00Z","methodology":"bus","version":"2024-1","digest":"d1c1a1b1d1c1a1b1d1c1a1b1d1c1a1b1","counted":"1","reduction_mg":80000,"points":10,"expires_on":"2027-06-30","consent_id":"by-szt","recorded_at":"2025-06-15T04:00:00.123456Z"}');
INSERT INTO pgbench_balances VALUES (:resident, 80000, 10) ON CONFLICT (resident) DO UPDATE SET reduction_mg = pgbench_balances.reduction_mg + excluded.reduction_mg, points = pgbench_balances.points + excluded.points;
COMMIT;
