//! `order=` → [`Order`]s; `columns=` and `on_conflict=` → names.

use super::Cursor;
use crate::rest::Problem;
use crate::rest::request::Order;

/// Terms of one list: each may be a column that is sorted by and not shown, and those count
/// against the columns of a row.
const TERMS_MAX: usize = 100;

/// Columns of a list: what a table can have.
const COLUMNS_MAX: usize = 1_600;

/// `a.desc.nullslast,b->c,relation(d)`
pub(super) fn orders(text: &str) -> Result<Vec<Order>, Problem> {
    let mut cursor = Cursor::new("order", text);
    let mut orders = Vec::new();
    loop {
        if orders.len() == TERMS_MAX {
            return Err(cursor.problem(format!("more than {TERMS_MAX} terms")));
        }
        orders.push(order(&mut cursor)?);
        cursor.space();
        if !cursor.eat(",") {
            break;
        }
    }
    cursor.end("\",\" or end of input")?;
    Ok(orders)
}

fn order(cursor: &mut Cursor<'_>) -> Result<Order, Problem> {
    let mut field = cursor.field()?;
    let mut relation = None;
    if field.path.is_empty() && cursor.eat("(") {
        let inside = cursor.field()?;
        cursor.expect(")")?;
        relation = Some(std::mem::replace(&mut field, inside).name);
    }
    let mut order = Order { relation, field, descending: false, nulls_first: None };
    let mut is_directed = false;
    while cursor.eat(".") {
        let start = *cursor;
        match cursor.run(|c| c.is_ascii_alphanumeric()) {
            "asc" if !is_directed => is_directed = true,
            "desc" if !is_directed => (is_directed, order.descending) = (true, true),
            "nullsfirst" => order.nulls_first = Some(true),
            "nullslast" => order.nulls_first = Some(false),
            _ if is_directed => return Err(start.expected("\"nullsfirst\" or \"nullslast\"")),
            _ => {
                let expected = "\"asc\", \"desc\", \"nullsfirst\" or \"nullslast\"";
                return Err(start.expected(expected));
            }
        }
        if order.nulls_first.is_some() {
            break;
        }
    }
    cursor.space();
    if matches!(cursor.peek(), None | Some(',')) {
        Ok(order)
    } else {
        Err(cursor.expected("delimiter (.), \",\" or end of input"))
    }
}

/// A list of column names, each kept once.
pub(super) fn columns(part: &'static str, text: &str) -> Result<Vec<String>, Problem> {
    let mut cursor = Cursor::new(part, text);
    let mut columns: Vec<String> = Vec::new();
    loop {
        if columns.len() == COLUMNS_MAX {
            return Err(cursor.problem(format!("more than {COLUMNS_MAX} columns")));
        }
        let column = cursor.name()?;
        if !columns.contains(&column) {
            columns.push(column);
        }
        if !cursor.eat(",") {
            break;
        }
    }
    cursor.end("\",\" or end of input")?;
    Ok(columns)
}
