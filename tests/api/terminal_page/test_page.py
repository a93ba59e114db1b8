"""A cashier's day at the page, against a real server on a real socket, with a network that fails at every place."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.api.city import City, wait_for
from tests.api.terminal_page.conftest import standing_at
from tests.api.terminal_page.till import Cashier, code_of

POINTS = 500


@pytest.fixture
def resident(served_city: City) -> str:
    return served_city.resident(points=POINTS)


@pytest.fixture
def code(served_city: City, resident: str) -> str:
    """What the resident's phone shows."""
    return code_of(served_city, resident)


def left(city: City, resident: str) -> int:
    balance = city.balance(resident)
    assert balance["points_held"] == 0
    return balance["points_available"]


# -- where all is well -----------------------------------------------------------------------------------------------


def test_points_are_taken_and_told_in_points_and_yuan(cashier: Cashier, resident: str, code: str) -> None:
    told = cashier.takes(120, code).outcome()
    assert "成功" in told
    assert "120 积分" in told
    assert "2.40 元" in told
    assert left(cashier.city, resident) == POINTS - 120
    assert len(cashier.line.named("pay")) == 1


@pytest.mark.parametrize(
    "by_keyboard", [pytest.param(True, id="keyboard"), pytest.param(False, id="buttons", marks=pytest.mark.long)]
)
def test_a_hand_scanner_works_where_the_amount_is_typed(
    cashier: Cashier, resident: str, code: str, by_keyboard: bool
) -> None:
    if by_keyboard:
        cashier.page.keyboard.type("120")
    else:
        cashier.types(120)
    cashier.page.keyboard.type(code)
    cashier.page.keyboard.press("Enter")
    assert "成功" in cashier.outcome()
    assert left(cashier.city, resident) == POINTS - 120


def test_a_code_is_never_taken_for_an_amount(cashier: Cashier, resident: str, code: str) -> None:
    cashier.page.keyboard.type(code)
    cashier.page.keyboard.press("Enter")
    cashier.sees("text=请先输入积分")
    assert cashier.told().startswith("0积分")
    assert not cashier.line.named("pay")
    assert left(cashier.city, resident) == POINTS


def test_a_mistyped_code_is_not_sent(cashier: Cashier, code: str) -> None:
    wrong = code[:-1] + str((int(code[-1]) + 1) % 10)
    cashier.takes(120, wrong)
    cashier.sees("#scan-wrong")
    assert not cashier.line.named("pay")


@pytest.mark.parametrize(
    ("points", "said"),
    [(120, ("付款码已用过", "刷新付款码")), (480, ("积分不足", "减少积分"))],
    ids=["used", "too-few"],
)
def test_a_refusal_says_what_is_wrong_and_what_to_do(
    cashier: Cashier, resident: str, code: str, points: int, said: tuple[str, str]
) -> None:
    assert "成功" in cashier.takes(100, code).outcome()
    cashier.press("下一笔")
    told = cashier.takes(points, code if points == 120 else code_of(cashier.city, resident)).outcome()
    assert "失败" in told
    for words in said:
        assert words in told
    assert left(cashier.city, resident) == POINTS - 100


# -- where the network fails -----------------------------------------------------------------------------------------


def test_a_sale_that_never_arrived_is_sent_again_as_the_same(cashier: Cashier, resident: str, code: str) -> None:
    cashier.line.cut("pay", "before")
    assert "成功" in cashier.takes(120, code).outcome(within=10)
    first, second = cashier.line.named("pay")
    assert first == second
    assert left(cashier.city, resident) == POINTS - 120


def test_an_answer_that_was_lost_is_asked_for(cashier: Cashier, resident: str, code: str) -> None:
    cashier.line.cut("pay", "after")
    assert "成功" in cashier.takes(120, code).outcome(within=10)
    assert len(cashier.line.named("pay")) == 1
    assert left(cashier.city, resident) == POINTS - 120


def test_why_points_were_not_taken_is_known_where_the_answer_was_lost(
    cashier: Cashier, resident: str, code: str
) -> None:
    cashier.line.cut("pay", "after")
    told = cashier.takes(POINTS + 1, code).outcome(within=10)
    assert "积分不足" in told
    assert "没有同意" not in told
    cashier.page.reload()
    cashier.screen("take")
    cashier.goes("账单")
    cashier.page.locator(".rows button").first.click()
    cashier.screen("entry")
    assert "积分不足" in cashier.told()


@pytest.mark.parametrize("lost", [pytest.param("before", marks=pytest.mark.long), "after"])
def test_what_nothing_is_learnt_of_is_reversed(cashier: Cashier, resident: str, code: str, lost: str) -> None:
    cashier.line.cut("pay", lost)
    cashier.line.always["ask"] = "before"
    told = cashier.takes(120, code).outcome(within=30)
    assert "没有扣积分" in told
    assert left(cashier.city, resident) == POINTS
    assert len(cashier.line.named("reverse")) == 1


@pytest.mark.long
def test_a_reversal_is_repeated_until_it_is_answered(cashier: Cashier, resident: str, code: str) -> None:
    cashier.line.cut("pay", "after")
    cashier.line.always["ask"] = "before"
    cashier.line.cut("reverse", "before", "after")
    assert "没有扣积分" in cashier.takes(120, code).outcome(within=60)
    assert len(set(cashier.line.named("reverse"))) == 1
    assert len(cashier.line.named("reverse")) == 3
    assert left(cashier.city, resident) == POINTS


@pytest.mark.long
def test_an_approval_that_comes_after_the_reversal_changes_nothing(cashier: Cashier, resident: str, code: str) -> None:
    cashier.line.cut("pay", "late")
    cashier.line.always["ask"] = "before"
    assert "没有扣积分" in cashier.takes(120, code).outcome(within=40)
    for answer in cashier.line.kept:
        answer()
    cashier.passes(5)
    assert "没有扣积分" in cashier.told()
    assert left(cashier.city, resident) == POINTS


def test_nothing_else_is_sold_while_a_sale_is_not_known(cashier: Cashier, resident: str, code: str) -> None:
    cashier.line.always |= {"pay": "after", "ask": "before"}
    cashier.takes(120, code)
    cashier.sees("text=正在查询结果")
    assert cashier.page.locator("#screen button").count() == 0
    cashier.page.reload()
    cashier.sees("text=正在查询结果")
    assert cashier.page.locator("#screen button").count() == 0
    cashier.line.always.clear()
    assert "成功" in cashier.outcome(within=10)


def test_a_page_that_was_closed_in_the_middle_finds_its_sale_again(cashier: Cashier, resident: str, code: str) -> None:
    cashier.line.cut("pay", "hang")
    cashier.takes(120, code)
    cashier.sees("text=正在扣积分")
    cashier.arrives("pay")
    cashier.page.reload()
    assert "成功" in cashier.outcome(within=10)
    assert len(cashier.line.named("pay")) == 1
    assert left(cashier.city, resident) == POINTS - 120


def test_a_sale_is_written_down_before_it_is_sent_and_its_code_never(cashier: Cashier, code: str) -> None:
    cashier.line.cut("pay", "hang")
    cashier.takes(120, code)
    cashier.sees("text=正在扣积分")
    cashier.arrives("pay")
    written = cashier.journal()
    assert '"phase":"paying"' in written
    assert str(cashier.line.named("pay")[0]) in written
    assert code not in written


def test_an_unreachable_server_is_a_state_and_not_the_end(cashier: Cashier, resident: str, code: str) -> None:
    cashier.context.set_offline(True)
    cashier.sees("text=网络不通")
    cashier.types(120)
    assert cashier.page.get_by_role("button", name="等待网络").is_disabled()
    cashier.context.set_offline(False)
    cashier.passes(6)
    cashier.page.locator("#network").wait_for(state="hidden")
    cashier.press("扫付款码")
    cashier.page.fill("#typed", code)
    cashier.press("确定")
    assert "成功" in cashier.outcome()


# -- where the resident is asked -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asking_phone(browser: Browser, served_city: City) -> Iterator[Cashier]:
    served_city.done(served_city.call("PUT", "/v1/merchants/mall/terms", {"confirm_above": 100}))
    with standing_at(browser, served_city, "mall") as cashier:
        yield cashier.activate()


@pytest.fixture
def asking(asking_phone: Cashier) -> Cashier:
    """At a merchant whose residents are asked for more than 100 points."""
    asking_phone.begins()
    return asking_phone


@pytest.mark.parametrize("accept", [pytest.param(True, id="yes"), pytest.param(False, id="no", marks=pytest.mark.long)])
def test_a_resident_who_is_asked_decides(asking: Cashier, resident: str, code: str, accept: bool) -> None:
    asking.takes(120, code)
    asking.sees("text=请居民在手机上确认")
    (waiting,) = asking.city.done(asking.city.get(f"/v1/residents/{resident}/confirmations", by="app"))["data"]
    body = {"accept": accept}
    asking.city.done(asking.city.post(f"/v1/redemptions/{waiting['redemption_id']}/confirmation", body, by="app"))
    told = asking.outcome(within=10)
    assert ("成功" if accept else "居民没有同意") in told
    assert left(asking.city, resident) == POINTS - 120 * accept


@pytest.mark.long
def test_a_resident_who_does_not_answer_is_not_waited_for(asking: Cashier, resident: str, code: str) -> None:
    asking.takes(120, code)
    asking.sees("text=请居民在手机上确认")
    assert "没有扣积分" in asking.outcome(within=75)
    assert left(asking.city, resident) == POINTS


@pytest.mark.long
def test_a_cashier_may_stop_waiting(asking: Cashier, resident: str, code: str) -> None:
    asking.takes(120, code)
    asking.sees("text=请居民在手机上确认")
    asking.press("取消")
    assert "没有扣积分" in asking.outcome()
    assert left(asking.city, resident) == POINTS


@pytest.mark.long
def test_what_a_cashier_has_stopped_is_not_revived_by_an_answer_on_its_way(
    asking: Cashier, resident: str, code: str
) -> None:
    asking.takes(120, code)
    asking.sees("text=请居民在手机上确认")
    (waiting,) = asking.city.done(asking.city.get(f"/v1/residents/{resident}/confirmations", by="app"))["data"]
    path = f"/v1/redemptions/{waiting['redemption_id']}/confirmation"
    asking.city.done(asking.city.post(path, {"accept": True}, by="app"))
    asking.line.cut("ask", "late")
    asking.passes(5)
    asking.press("取消")
    asking.page.wait_for_timeout(100)
    for answer in asking.line.kept:
        answer()
    assert "没有扣积分" in asking.outcome()
    assert left(asking.city, resident) == POINTS


# -- after the sale --------------------------------------------------------------------------------------------------


def test_a_sale_is_undone_whole(cashier: Cashier, resident: str, code: str) -> None:
    cashier.takes(120, code).outcome()
    cashier.press("下一笔")
    cashier.goes("账单")
    cashier.page.locator(".rows button").first.click()
    cashier.press("整笔撤销")
    cashier.screen("undo")
    cashier.press("整笔撤销")
    assert "已撤销" in cashier.outcome()
    assert left(cashier.city, resident) == POINTS


def test_part_of_a_sale_is_refunded_once_whatever_the_network_does(cashier: Cashier, resident: str, code: str) -> None:
    cashier.takes(120, code).outcome()
    cashier.press("下一笔")
    cashier.goes("账单")
    cashier.page.locator(".rows button").first.click()
    cashier.press("退部分积分")
    cashier.types(50)
    cashier.line.cut("refund", "after", "before")
    cashier.press("退积分")
    assert "已退积分" in cashier.outcome(within=30)
    assert len(set(cashier.line.named("refund"))) == 1
    assert left(cashier.city, resident) == POINTS - 70


def test_an_offer_is_chosen_paid_and_given_back_whole(cashier: Cashier, resident: str, code: str) -> None:
    name = cashier.city.name("tea")
    body = {"offer": name, "title": f"莫干黄芽 {name}", "points": 200, "amount_fen": 500, "stock": 1}
    cashier.city.done(cashier.city.post("/v1/merchants/shop/offers", body))
    cashier.city.settled()
    cashier.goes("商品")
    cashier.page.get_by_role("button", name=body["title"]).click()
    cashier.page.fill("#typed", code)
    cashier.press("确定")
    told = cashier.outcome()
    assert "成功" in told
    assert "5.00 元" in told
    assert body["title"] in told
    cashier.city.settled()
    cashier.press("下一笔")
    cashier.goes("商品")
    sold_out = cashier.page.get_by_role("button", name=body["title"])
    cashier.sees(f"button:disabled:has-text('{body['title']}')")
    assert "已兑完" in sold_out.inner_text()
    cashier.goes("账单")
    cashier.page.get_by_role("button", name=body["title"]).click()
    cashier.press("退商品")
    assert "200积分" in cashier.told()
    cashier.press("退格")
    assert cashier.page.get_by_role("button", name="退积分", exact=True).is_disabled()  # part of an item is none
    cashier.types(0)
    cashier.press("退积分")
    assert "已退积分" in cashier.outcome()
    assert left(cashier.city, resident) == POINTS
    # The order takes it in a moment after the resident has the points.
    wait_for(lambda: cashier.city.done(cashier.city.get(f"/v1/merchants/shop/offers/{name}"))["stock"] == 1)


def test_a_suspended_terminal_says_so(phone: Cashier, code: str) -> None:
    phone.activate()
    body = {"suspended": True, "reason": "stolen"}
    phone.city.done(phone.city.post(f"{phone.path}/suspension", body))
    assert "本终端已停用" in phone.takes(120, code).outcome()


# -- who it is -------------------------------------------------------------------------------------------------------


def test_the_key_never_leaves_the_phone(cashier: Cashier) -> None:
    told = cashier.page.evaluate(
        """() => new Promise((resolve) => {
          const request = indexedDB.open("carbon-points-terminal");
          request.onsuccess = () => {
            const known = request.result.transaction("known").objectStore("known").get("identity");
            known.onsuccess = () => {
              request.result.close();
              const {key} = known.result;
              crypto.subtle.exportKey("pkcs8", key).then(() => resolve("exported"), () => resolve(key.type));
            };
          };
        })"""
    )
    assert told == "private"


def test_an_activation_whose_answer_was_lost_is_sent_again(phone: Cashier) -> None:
    phone.line.cut("activate", "after")
    code = phone.activation_code()
    phone.page.fill("#activation", code)
    phone.press("激活")
    phone.sees("text=没有连上服务器")
    phone.page.fill("#activation", code)
    phone.press("激活")
    phone.screen("take")


@pytest.mark.long
def test_a_changed_key_signs_from_then_on(cashier: Cashier, resident: str, code: str) -> None:
    cashier.press("本机")
    before = cashier.screen("about").inner_text()
    cashier.press("更换密钥")
    cashier.sees("text=密钥已更换")
    assert cashier.screen("about").inner_text().replace("密钥已更换。", "").strip() != before.strip()
    cashier.press("返回")
    assert "成功" in cashier.takes(120, code).outcome()


@pytest.mark.long
def test_a_phone_that_becomes_another_terminal_leaves_the_sales_of_the_first_alone(phone: Cashier, code: str) -> None:
    phone.activate().takes(100, code).outcome()
    phone.press("下一笔")
    phone.city.done(phone.city.post("/v1/merchants/mall/terminals", {"terminal": (name := phone.city.name("phone"))}))
    phone.path = f"/v1/merchants/mall/terminals/{name}"
    phone.press("本机")
    phone.press("重新激活")
    phone.activate()
    phone.goes("账单")
    phone.sees("text=这一批还没有交易")
    assert phone.page.locator(".rows").count() == 0


def test_a_second_window_is_no_second_terminal(cashier: Cashier) -> None:
    other = cashier.opened()
    other.get_by_text("终端已在另一个窗口打开").wait_for()
    other.close()
