
"use strict";

// Everything from workers and clients goes through these: text stays text.
const byId = (id) => document.getElementById(id);

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// The page is touched only where it changes.
function setText(node, text) {
  if (node.textContent !== text) {
    node.textContent = text;
  }
}

function setAttribute(node, name, value) {
  if (value === null) {
    node.removeAttribute(name);
  } else if (node.getAttribute(name) !== value) {
    node.setAttribute(name, value);
  }
}

const NONE = "–";
const whole = new Intl.NumberFormat("en");
const count = (number) => whole.format(number);
const percent = (ratio) => (ratio === null ? NONE : `${(100 * ratio).toFixed(1)} %`);
const rate = (number) => (number === null ? NONE : number < 10 ? number.toFixed(1) : count(Math.round(number)));

function time(seconds) {
  if (seconds === null) {
    return NONE;
  }
  return seconds < 1 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(2)} s`;
}

function age(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60]];
  const unit = units.find(([, length]) => seconds >= length);
  return unit ? `${Math.floor(seconds / unit[1])} ${unit[0]}` : `${Math.floor(seconds)} s`;
}

const divide = (part, all) => (all > 0 ? part / all : null);

// A table's body from lists of texts; rows and cells that exist are used again.
function fillTable(table, columns, rows, empty) {
  if (!table.tHead) {
    const cells = columns.map((name) => make("th", {scope: "col", role: "columnheader"}, name));
    table.append(make("thead", {role: "rowgroup"}, make("tr", {role: "row"}, ...cells)), make("tbody", {role: "rowgroup"}));
  }
  const body = table.tBodies[0];
  const filled = rows.length ? rows : [[empty]];
  while (body.rows.length > filled.length) {
    body.rows[body.rows.length - 1].remove();
  }
  filled.forEach((texts, at) => {
    const row = body.rows[at] || body.appendChild(make("tr", {role: "row"}));
    const wanted = rows.length ? columns.length : 1;
    while (row.cells.length > wanted) {
      row.cells[row.cells.length - 1].remove();
    }
    while (row.cells.length < wanted) {
      row.append(make("td", {role: "cell"}, make("bdi")));
    }
    texts.forEach((text, number) => {
      const cell = row.cells[number];
      setText(cell.firstChild, text);
      setAttribute(cell, "data-label", rows.length ? columns[number] : "");
      setAttribute(cell, "colspan", rows.length ? null : String(columns.length));
    });
  });
}

// A list of names and values, of which only changed values are written.
function fillList(list, entries) {
  const known = list.children;
  while (known.length > 2 * entries.length) {
    list.lastElementChild.remove();
  }
  entries.forEach(([name, value], at) => {
    if (known.length <= 2 * at) {
      list.append(make("dt"), make("dd"));
    }
    setText(known[2 * at], name);
    setText(known[2 * at + 1], value);
  });
}
