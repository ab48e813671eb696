"""What a page for everyone has to have, checked in the page itself.

Each function returns the places where something is wrong. The rules are those of WCAG 2.2, level AA.
"""

from __future__ import annotations

from typing import Any

# Text whose contrast with what is behind it is below 4.5, or 3 where it is large (1.4.3).
CONTRAST = """() => {
  const channel = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parse = (text) => {
    const numbers = text.match(/[\\d.]+/g).map(Number);
    return {rgb: numbers.slice(0, 3), alpha: numbers[3] ?? 1};
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const {rgb, alpha} = parse(getComputedStyle(at).backgroundColor);
      if (alpha === 1) return rgb;
      if (alpha > 0) throw new Error("half transparent");
    }
    throw new Error("no background");
  };
  const wrong = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  for (let node; (node = walker.nextNode());) {
    const element = node.parentElement;
    if (!node.textContent.trim() || ["SCRIPT", "STYLE", "OPTION"].includes(element.tagName)) continue;
    if (!element.checkVisibility({visibilityProperty: true})) continue;
    const style = getComputedStyle(element);
    const front = luminance(parse(style.color).rgb), back = luminance(behind(element));
    const contrast = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    seen += 1;
    if (contrast < (large ? 3 : 4.5)) wrong.push(`${contrast.toFixed(2)}: ${node.textContent.trim().slice(0, 40)}`);
  }
  return seen ? wrong : ["no text was found"];
}"""

# Names, roles, order of headings, tables, identifiers (1.3.1, 2.4.6, 4.1.2).
STRUCTURE = """() => {
  const wrong = [];
  const visible = (element) => element.checkVisibility({visibilityProperty: true});
  const all = (selector) => [...document.querySelectorAll(selector)];
  const text = (ids) => ids.split(" ").map((id) => document.getElementById(id)?.textContent.trim() ?? "").join("");
  const nameOf = (element) => {
    if (element.hasAttribute("aria-labelledby")) return text(element.getAttribute("aria-labelledby"));
    if (element.hasAttribute("aria-label")) return element.getAttribute("aria-label");
    if (element.labels?.length) return [...element.labels].map((label) => label.textContent.trim()).join("");
    if (element.tagName === "TABLE") return element.caption?.textContent.trim() ?? "";
    return ["BUTTON", "A"].includes(element.tagName) ? element.textContent.trim() : "";
  };
  for (const element of all("button, input, select, textarea, a, dialog, section, table, [role=region]")) {
    const closed = element.closest("dialog:not([open])");
    if (!closed && !nameOf(element)) wrong.push(`no name: ${element.outerHTML.slice(0, 80)}`);
  }
  const ids = all("[id]").map((element) => element.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) wrong.push(`twice: #${id}`);
  for (const attribute of ["aria-labelledby", "aria-describedby", "for"]) {
    for (const element of all(`[${attribute}]`)) {
      for (const id of element.getAttribute(attribute).split(" ")) {
        if (!ids.includes(id)) wrong.push(`${attribute} leads nowhere: ${id}`);
      }
    }
  }
  let level = 0;
  for (const heading of all("h1, h2, h3, h4").filter(visible)) {
    const next = Number(heading.tagName[1]);
    if (next > level + 1) wrong.push(`a level is left out before ${heading.textContent}`);
    level = next;
  }
  if (all("h1").length !== 1 || all("main").length !== 1 || all("header").length !== 1) wrong.push("landmarks");
  if (!document.documentElement.lang || !document.title) wrong.push("language or title");
  if (all("[tabindex]").some((element) => element.tabIndex > 0)) wrong.push("a positive tabindex");
  for (const cell of all("th")) if (!cell.scope) wrong.push(`no scope: ${cell.textContent}`);
  const roles = {TABLE: "table", TR: "row", TH: "columnheader", TD: "cell", TBODY: "rowgroup", THEAD: "rowgroup"};
  for (const element of all("table, table *")) {
    const role = roles[element.tagName];
    // A table whose display is another one keeps its role only when it is spelt out.
    if (role && element.getAttribute("role") !== role) wrong.push(`role: ${element.outerHTML.slice(0, 60)}`);
  }
  for (const element of all("button, input, select, textarea").filter(visible)) {
    const box = element.getBoundingClientRect();
    if (box.height < 24 || box.width < 24) wrong.push(`${box.width} x ${box.height}: ${nameOf(element)}`);
  }
  for (const id of ["connection", "notice", "shown", "explain-status"]) {
    if (document.getElementById(id).getAttribute("role") !== "status") wrong.push(`#${id} is not announced`);
  }
  return wrong;
}"""

# What sticks out of the page, sideways (1.4.10).
REFLOW = """() => {
  const wrong = [];
  const {scrollWidth, clientWidth} = document.scrollingElement;
  if (scrollWidth > clientWidth) wrong.push(`${scrollWidth} in ${clientWidth}`);
  for (const element of document.querySelectorAll("body *, dialog[open] *")) {
    if (!element.checkVisibility() || element.closest(".hidden, .skip, thead")) continue;
    const {left, right, width} = element.getBoundingClientRect();
    if (width && (right > innerWidth + 0.5 || left < -0.5)) wrong.push(element.outerHTML.slice(0, 80));
    if (element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).overflowX === "auto") {
      wrong.push(`scrolls sideways: ${element.outerHTML.slice(0, 80)}`);
    }
  }
  return wrong;
}"""


def wrong(page: Any, check: str) -> list[str]:
    return page.evaluate(check)
