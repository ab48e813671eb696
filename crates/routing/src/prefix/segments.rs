//! An array that grows without moving: what is big, in steps that are small.

/// Segments of 2^`BITS` elements each. No step copies what is there or touches more fresh
/// memory than one element needs.
#[derive(Debug)]
pub(super) struct Segments<T, const BITS: u32> {
    parts: Vec<Vec<T>>,
    len: usize,
    most: usize,
}

impl<T, const BITS: u32> Segments<T, BITS> {
    const SEGMENT: usize = 1 << BITS;

    /// An empty array with room for `most` elements.
    pub(super) fn new(most: usize) -> Self {
        Self {
            parts: Vec::with_capacity(most.div_ceil(Self::SEGMENT)),
            len: 0,
            most,
        }
    }

    /// Bytes that so many elements need, their table of segments included.
    pub(super) fn needed(elements: usize) -> usize {
        elements * size_of::<T>() + elements.div_ceil(Self::SEGMENT) * size_of::<Vec<T>>()
    }

    /// Bytes in use: elements that were ever pushed, and the whole table of segments.
    pub(super) fn bytes(&self) -> usize {
        self.len * size_of::<T>() + self.parts.capacity() * size_of::<Vec<T>>()
    }

    /// Elements in use.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Elements that may still be pushed.
    pub(super) fn room(&self) -> usize {
        self.most - self.len
    }

    /// Appends an element; tells its place, or `None` when the array is full.
    pub(super) fn push(&mut self, element: T) -> Option<usize> {
        if self.room() == 0 {
            return None;
        }
        let at = self.len;
        if at.is_multiple_of(Self::SEGMENT) {
            let size = self.room().min(Self::SEGMENT);
            self.parts.push(Vec::with_capacity(size));
        }
        self.parts.last_mut()?.push(element);
        self.len += 1;
        Some(at)
    }

    /// The element at a place below [`len`](Self::len).
    pub(super) fn at(&self, at: usize) -> &T {
        &self.parts[at >> BITS][at & (Self::SEGMENT - 1)]
    }

    /// The same, to be changed.
    pub(super) fn at_mut(&mut self, at: usize) -> &mut T {
        &mut self.parts[at >> BITS][at & (Self::SEGMENT - 1)]
    }
}

impl<const BITS: u32> Segments<u32, BITS> {
    /// So many zeros; their memory is fresh until it is used.
    pub(super) fn zeros(count: usize) -> Self {
        let mut zeros = Self::new(count);
        while zeros.room() > 0 {
            let size = zeros.room().min(Self::SEGMENT);
            zeros.parts.push(vec![0; size]);
            zeros.len += size;
        }
        zeros
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_stay_where_they_are_put() {
        let mut numbers = Segments::<usize, 2>::new(11);
        for number in 0..11 {
            assert_eq!(numbers.push(number), Some(number));
            assert_eq!(numbers.bytes(), 8 * (number + 1) + 3 * 24);
        }
        assert_eq!(numbers.push(11), None);
        *numbers.at_mut(6) += 100;
        let all: Vec<_> = (0..numbers.len()).map(|at| *numbers.at(at)).collect();
        assert_eq!(all, [0, 1, 2, 3, 4, 5, 106, 7, 8, 9, 10]);
        assert_eq!(numbers.bytes(), Segments::<usize, 2>::needed(11));
    }

    #[test]
    fn zeros_are_all_there() {
        let zeros = Segments::<u32, 2>::zeros(9);
        assert_eq!((zeros.len(), zeros.room()), (9, 0));
        assert!((0..9).all(|at| *zeros.at(at) == 0));
    }
}
