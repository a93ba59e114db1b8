"""The end of a cashier's day: the page and the platform come to the same sums, or it is shown where they do not."""

from typing import Any

import pytest

from tests.api.city import City
from tests.api.terminal_page.till import Cashier, code_of


@pytest.fixture
def resident(served_city: City) -> str:
    return served_city.resident(points=500)


def test_a_batch_that_agrees_is_closed(phone: Cashier, resident: str) -> None:
    phone.activate()
    for points in (100, 60):
        phone.takes(points, code_of(phone.city, resident)).outcome()
        phone.press("下一笔")
    phone.goes("账单")
    phone.page.locator(".rows button", has_text="60").click()
    phone.press("整笔撤销")
    phone.press("整笔撤销")
    phone.outcome()
    phone.press("下一笔")
    phone.goes("账单")
    phone.press("结批")
    told = phone.outcome()
    assert "账目一致" in told
    assert "100 积分" in told
    phone.press("确定")
    phone.sees("text=第 2 批")
    phone.sees("text=更早")


def test_the_same_close_is_sent_until_it_is_answered_and_nothing_is_sold_before(phone: Cashier, resident: str) -> None:
    phone.activate().takes(100, code_of(phone.city, resident)).outcome()
    phone.press("下一笔")
    phone.goes("账单")
    phone.line.cut("close", "after")
    phone.press("结批")
    phone.sees("text=没有收到结批结果")
    phone.page.reload()
    phone.screen("take")
    phone.types(10)
    phone.press("扫付款码")
    phone.screen("book")
    phone.press("结批")
    assert "账目一致" in phone.outcome()
    first, second = phone.line.named("close")
    assert first == second


class Behind:
    """Another who calls as this terminal, behind the page's back, by a key of its own."""

    def __init__(self, cashier: Cashier) -> None:
        self.city = cashier.city
        self.path, self.terminal = cashier.path, cashier.path.rpartition("/")[2]
        self.key = self.city.installation.directory.issue_key("terminal", f"shop/{self.terminal}")[1]

    def post(self, path: str, body: object) -> Any:
        head = {"Authorization": f"Bearer {self.key}", "Idempotency-Key": self.city.name("behind")}
        return self.city.done(self.city.http.post(path, json=body, headers=head))

    def sells(self, points: int, resident: str) -> str:
        body = {"code": code_of(self.city, resident), "merchant": "shop", "terminal": self.terminal, "points": points}
        return self.post("/v1/redemptions", body | {"capture": True})["redemption_id"]

    def closes(self, points: int) -> None:
        """The first batch, of one sale."""
        sums = {"count": 0, "points": 0, "fen": 0}
        body = {"sales": {"count": 1, "points": points, "fen": points * 2}, "refunds": sums, "reversals": sums}
        assert self.post(f"{self.path}/batches/1/close", body)["answer"] == "agreed"


def closing(cashier: Cashier) -> str:
    cashier.press("下一笔")
    cashier.goes("账单")
    cashier.press("结批")
    cashier.screen("closed")
    return cashier.told()


@pytest.mark.long
def test_a_batch_that_does_not_agree_shows_what_differs_and_may_be_closed_as_the_server_has_it(
    phone: Cashier, resident: str
) -> None:
    phone.activate().takes(100, code_of(phone.city, resident)).outcome()
    other = Behind(phone).sells(30, resident)
    told = closing(phone)
    assert "账目不一致" in told
    assert "只有服务器有" in told
    assert other in told
    phone.press("确定")
    phone.sees("text=第 1 批")
    phone.press("结批")
    phone.press("以服务器为准")
    assert "账目一致" in phone.outcome()


@pytest.mark.long
def test_what_was_sold_after_a_batch_was_closed_elsewhere_counts_in_the_next(phone: Cashier, resident: str) -> None:
    phone.activate().takes(100, code_of(phone.city, resident)).outcome()
    Behind(phone).closes(100)
    phone.press("下一笔")
    phone.takes(60, code_of(phone.city, resident)).outcome()
    assert "第 1 批已经结过" in closing(phone)
    phone.press("确定")
    phone.sees("text=第 2 批")
    phone.press("结批")
    told = phone.outcome()
    assert "账目一致" in told
    assert "60 积分" in told


@pytest.mark.long
def test_a_phone_that_is_new_to_its_terminal_learns_which_batch_it_is_in(phone: Cashier, resident: str) -> None:
    behind = Behind(phone)
    behind.sells(100, resident)
    behind.closes(100)
    phone.activate()
    phone.goes("账单")
    phone.sees("text=第 2 批")
