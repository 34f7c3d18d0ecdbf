//! Functions of a component, made with wit-bindgen.

wit_bindgen::generate!({ world: "greeter" });

use exports::demo::greeter::shapes::{Access, Color, Guest as Shapes, Point, Shape};

struct Component;
export!(Component);

impl Guest for Component {
    fn greet(name: String) -> String {
        format!("Hello, {name}!")
    }
}

impl Shapes for Component {
    fn bounds(of: Vec<Point>) -> Option<(Point, Point)> {
        let low = Point { x: of.iter().map(|p| p.x).min()?, y: of.iter().map(|p| p.y).min()? };
        let high = Point { x: of.iter().map(|p| p.x).max()?, y: of.iter().map(|p| p.y).max()? };
        Some((low, high))
    }

    fn describe(of: Shape, in_: Color) -> String {
        match of {
            Shape::Circle(radius) => format!("a {in_:?} circle of radius {radius}"),
            Shape::Line((from, to)) => format!("a {in_:?} line from {},{} to {},{}", from.x, from.y, to.x, to.y),
            Shape::Nothing => "nothing".into(),
        }
    }

    fn divide(a: i32, b: i32) -> Result<i32, String> {
        a.checked_div(b).ok_or_else(|| "division by zero".into())
    }

    fn both(a: Access, b: Access) -> Access {
        a & b
    }

    fn sum(of: Vec<u8>) -> u64 {
        of.iter().map(|byte| u64::from(*byte)).sum()
    }

    fn zeros(count: u32) -> Vec<u8> {
        vec![0; count as usize]
    }
}
