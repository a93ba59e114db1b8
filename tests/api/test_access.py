"""Who may call what: every call by every role, and nobody for somebody else."""

from pathlib import Path

import pytest

from tests.api.city import CALLERS, City, hold, problem
from tests.api.test_lots import issued, sale, use

ROLES = ("app", "auditor", "buyer", "operator", "source", "terminal")
PUBLIC = {
    "activateTerminal",
    "getCertificate",
    "getHealth",
    "getMethodology",
    "getReadiness",
    "getVersion",
    "listMethodologies",
}
PLACES = {
    "resident": "res_" + "a" * 20,
    "action_id": "act_" + "a" * 26,
    "redemption_id": "rdm_" + "a" * 20,
    "pool_id": "pool_" + "a" * 20,
    "lot_id": f"lot_{'a' * 20}_{'a' * 20}",
    "settlement_id": "stl_" + "a" * 20,
    "consent_id": "con_1",
    "merchant": "nobody",
    "offer": "none",
    "campaign": "none",
    "terminal": "none",
    "batch": "1",
    "source": "nobody",
    "methodology": "nothing",
    "certificate": "none",
    "endpoint_id": "whe_" + "a" * 20,
    "event_id": "evt_0_1_" + "a" * 10,
}


def operations() -> list[list[str]]:
    """Operation, method, path and roles, from the list beside this file, which nobody edits without meaning it."""
    lines = (Path(__file__).parent / "operations.txt").read_text("utf-8").splitlines()
    return [line.split() for line in lines if not line.startswith("#")]


@pytest.mark.parametrize(("operation", "method", "path", "roles"), operations(), ids=lambda v: v if v.isalnum() else "")
def test_a_call_takes_its_own_roles_and_no_other(
    city: City, operation: str, method: str, path: str, roles: str
) -> None:
    place = path.format(**PLACES)
    if operation in PUBLIC:
        assert roles == "public"
        assert city.call(method, place, by="").status_code in ({200, 404} if method == "GET" else {400})
        return
    allowed = roles.split(",")
    assert "operator" in allowed
    assert set(allowed) <= set(ROLES)
    for role in ROLES:
        answer = city.call(method, place, by=role)
        if role in allowed:
            assert "role-not-allowed" not in answer.text
            assert answer.status_code in {200, 400, 403, 404, 409, 422}, (role, answer.text)
        else:
            problem(answer, 403, "role-not-allowed")
    problem(city.call(method, place, by=""), 401, "unauthenticated")


class TestKeys:
    @pytest.mark.parametrize(
        "header", ["", "Bearer", "Bearer ", "Basic abc", "cp_live_x", "Bearer cp_live_x", "Bearer " + "x" * 5000]
    )
    def test_a_call_without_a_key_in_force_is_refused(self, city: City, header: str) -> None:
        answer = city.get("/v1/fund", by="", headers={"Authorization": header})
        problem(answer, 401, "unauthenticated")
        assert answer.headers["WWW-Authenticate"] == "Bearer"

    def test_a_key_is_told_once_and_stored_as_its_hash(self, own_city: City, tmp_path: Path) -> None:
        _, secret = own_city.installation.directory.issue_key("auditor", "x")
        assert own_city.get("/v1/fund", by="", headers={"Authorization": f"bearer {secret}"}).status_code == 200
        for file in (tmp_path / "data").rglob("*"):
            assert not file.is_file() or secret.encode() not in file.read_bytes(), file

    def test_a_revoked_key_is_taken_no_more(self, own_city: City) -> None:
        key, secret = own_city.installation.directory.issue_key("auditor", "x")
        headers = {"Authorization": f"Bearer {secret}"}
        assert own_city.get("/v1/fund", by="", headers=headers).status_code == 200
        assert own_city.installation.directory.revoke_key(key.key_id)
        problem(own_city.get("/v1/fund", by="", headers=headers), 401, "unauthenticated")

    def test_a_new_key_of_the_same_owner_finds_its_earlier_calls_again(self, own_city: City) -> None:
        body = {"methodology": "bus", "version": "2024-1", "from_month": "2025-01", "until_month": "2025-01"}
        first = own_city.post("/v1/pools", body, key="k")
        _, secret = own_city.installation.directory.issue_key(*CALLERS["operator"])
        again = own_city.post("/v1/pools", body, by="", key="k", headers={"Authorization": f"Bearer {secret}"})
        assert (again.status_code, again.json()) == (200, first.json())


class TestOwners:
    """A key that belongs to somebody does nothing for somebody else."""

    def test_a_source_reports_reads_and_takes_back_its_own_only(self, city: City) -> None:
        problem(city.post("/v1/actions", city.report(), by="other source"), 403, "not-yours")
        action = city.recorded()["action_id"]
        problem(city.get(f"/v1/actions/{action}", by="other source"), 403, "not-yours")
        reversal = city.post(f"/v1/actions/{action}/reversal", {"reason": "x"}, by="other source")
        problem(reversal, 403, "not-yours")
        assert city.get(f"/v1/actions/{action}", by="source").json()["status"] == "credited"

    @pytest.mark.parametrize("caller", ["next terminal", "other terminal"])
    def test_a_terminal_redeems_at_its_own_place_only(self, city: City, caller: str) -> None:
        resident = city.resident(points=100)
        problem(city.post("/v1/redemptions", hold(resident, 1), by=caller), 403, "not-yours")
        held, spent = city.held(resident, 10), city.captured(resident, 10)
        problem(city.get(f"/v1/redemptions/{held}", by=caller), 403, "not-yours")
        for path, body in (
            (f"{held}/capture", {"points": 10}),
            (f"{held}/void", None),
            (f"{spent}/refunds", {"points": 1}),
        ):
            problem(city.post(f"/v1/redemptions/{path}", body, by=caller), 403, "not-yours")
        assert city.balance(resident)["points_held"] == 10

    def test_a_terminal_sees_its_own_merchants_settlements_only(self, city: City) -> None:
        assert city.get("/v1/merchants/shop/settlements", by="next terminal").status_code == 200
        problem(city.get("/v1/merchants/shop/settlements", by="other terminal"), 403, "not-yours")

    def test_a_buyer_retires_its_own_units_only(self, own_city: City) -> None:
        path = f"/v1/lots/{issued(own_city, 2)['lot_id']}"
        own_city.done(own_city.post(f"{path}/sales", sale(2)))
        problem(own_city.post(f"{path}/retirements", use(1), by="other buyer"), 403, "not-yours")
        problem(own_city.post(f"{path}/retirements", use(1, holder="airline"), by="other buyer"), 409, "units-not-held")
        assert own_city.post(f"{path}/retirements", use(1), by="buyer").status_code == 201
